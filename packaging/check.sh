#!/usr/bin/env bash
# Tries the packages in dist/: what they hold, what lintian and rpmlint say, and what they do to a machine, which is a
# fresh Debian root of its own; repository and cloud-init's example too. Needs root, debootstrap, lintian, rpmlint, and what repo.sh needs.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
cd "$(dirname "$0")/.."
work=$(mktemp -d)
root=$work/root
trap 'umount --quiet "$root/proc" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT
packages="nexus-agent nexus-collector nexusctl"

step() { printf '\n-- %s (%ds)\n' "$*" "$SECONDS"; }
fail() {
    echo "error: $*" >&2
    exit 1
}
inside() { chroot "$root" /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
there() { local path; for path in "$@"; do [ -e "$root$path" ] || [ -L "$root$path" ] || fail "$path is missing"; done; }
gone() { local path; for path in "$@"; do if [ -e "$root$path" ] || [ -L "$root$path" ]; then fail "$path is there"; fi; done; }
deb() { echo dist/"$1"_*.deb; }
rpm_of() { echo dist/"$1"-[0-9]*.rpm; }

# Mode, owner, digest and path of every file, however a package says it.
files_of_deb() {
    local tree=$work/tree
    rm -rf "$tree" && mkdir "$tree"
    dpkg-deb --extract "$1" "$tree"
    (cd "$tree" && find . -type f | while read -r file; do
        printf '%s %s %s\n' "$(stat --format '%A %u/%g' "$file")" "$(sha256sum <"$file" | cut -d' ' -f1)" "${file#.}"
    done) | sort -k4
}
files_of_rpm() {
    # Its folders are those that it has to itself.
    rpm -qp --nosignature --queryformat \
        '[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILEDIGESTS} %{FILENAMES}\n]' "$1" \
        | sed '/^d/d; s| root/root | 0/0 |; s|/zsh/site-functions/|/zsh/vendor-completions/|' | sort -k4
}

step "deb and rpm hold the same"
for package in $packages; do
    files_of_deb "$(deb $package)" >"$work/deb"
    files_of_rpm "$(rpm_of $package)" >"$work/rpm"
    diff "$work/deb" "$work/rpm" || fail "$package: deb and rpm differ"
    diff <(dpkg-deb --info "$(deb $package)" conffiles 2>/dev/null | sort) \
        <(rpm -qp --nosignature --configfiles "$(rpm_of $package)" | sort) || fail "$package: conffiles differ"
    # An rpm names what a program's loader must know, a deb the version of the library that has it.
    if grep -q GLIBC_ABI_DT_RELR <<<"$(rpm -qp --nosignature --requires "$(rpm_of $package)")"; then
        dpkg --compare-versions "$(dpkg-deb --field "$(deb $package)" Depends | sed 's/.*libc6 (>= \([0-9.]*\)).*/\1/')" ge 2.36 \
            || fail "$package would be installed where it cannot be loaded"
    fi
    for file in copyright third-party $package.cdx.json changelog.Debian.gz; do
        grep -q " /usr/share/doc/$package/$file\$" "$work/deb" || fail "$package has no $file"
    done
    for program in $(sed -n 's|.* /usr/bin/||p' "$work/deb"); do
        for file in "man/man[18]/$program\.[18]\.gz" "bash-completion/completions/$program" "zsh/vendor-completions/_$program" \
            "fish/vendor_completions\.d/$program\.fish"; do
            grep -q " /usr/share/$file\$" "$work/deb" || fail "$package has no $file"
        done
    done
    printf '%s: %d files\n' "$package" "$(wc -l <"$work/deb")"
done

step lintian
# SQLite is compiled into the collector, in the version that the store is tested with: older ones can corrupt a write-ahead
# log, and what a query may do is limited by how it is compiled. Lintian does not recognise a version as new as that, so
# there is no override for it.
lintian --allow-root --fail-on error,warning --tag-display-limit 0 dist/*.deb

step rpmlint
rpmlint --config packaging/rpmlint.toml dist/*.rpm

step "a Debian root"
. /etc/os-release
# The distribution's own, and the one with all of it.
mirror=${NEXUS_MIRROR:-$(sed -n '/security/d; p; q' <<<"$(apt-get indextargets --format '$(REPO_URI)' \
    'Created-By: Packages' "Codename: $VERSION_CODENAME" 'Component: main')")}
debootstrap --variant=minbase --include=systemd,init-system-helpers "$VERSION_CODENAME" "$root" "$mirror" >"$work/log" \
    || { tail -20 "$work/log" && fail "debootstrap"; }
mount -t proc proc "$root/proc"
everything() { (cd "$root" && find . -xdev \( -path ./var/lib/dpkg -o -path ./var/log -o -path ./var/cache \
    -o -path ./var/lib/apt -o -path ./proc \) -prune -o -print) | grep -vE '^\./etc/(\.pwd\.lock|(passwd|group|shadow|gshadow)-)$' | sort; }
# The left-out files of /etc are what any change of users leaves.
everything >"$work/before"
cp dist/*.deb dist/*.rpm "$root/tmp/"

# Of the same files, one version on.
next_version() {
    local tree=$work/next version
    rm -rf "$tree"
    dpkg-deb --raw-extract "$(deb "$1")" "$tree"
    version=$(sed -n 's/^Version: //p' "$tree/DEBIAN/control")
    sed -i "s/^Version: .*/Version: $version+next/" "$tree/DEBIAN/control"
    echo '# new' >>"$tree/etc/nexus/agent.toml"
    dpkg-deb --build --root-owner-group -Zgzip "$tree" "$root/tmp/next.deb" >/dev/null
}

step "nexus-agent comes, is upgraded, goes back, goes, and is purged"
inside sh -c 'dpkg --install /tmp/nexus-agent_*.deb' >/dev/null
there /etc/systemd/system/multi-user.target.wants/nexus-agent.service /var/lib/nexus /etc/nexus/agent.toml
inside nexus-agent check-config
inside sh -c 'mkdir -p /var/lib/nexus/agent/identity /etc/nexus/agent.toml.d && touch /etc/nexus/enrol.token'
echo 'interval = "20s"' >"$root/etc/nexus/agent.toml"
next_version nexus-agent
inside dpkg --install --force-confold /tmp/next.deb >/dev/null
grep -qx 'interval = "20s"' "$root/etc/nexus/agent.toml" || fail "an upgrade took an administrator's configuration"
there /etc/nexus/agent.toml.dpkg-dist
inside sh -c 'dpkg --install --force-confold /tmp/nexus-agent_*.deb' >/dev/null 2>&1
inside dpkg --remove nexus-agent >/dev/null
gone /usr/bin/nexus-agent
there /var/lib/nexus/agent/identity /etc/nexus/agent.toml
inside dpkg --purge nexus-agent >/dev/null
# Removing and purging what is not configured, or a second time, is no error.
inside sh -c 'dpkg --unpack /tmp/nexus-agent_*.deb && dpkg --purge nexus-agent && dpkg --purge nexus-agent' >/dev/null 2>&1
rm -f "$root/tmp/next.deb"

step "nexus-collector and nexusctl, in either order"
owner() { inside dpkg-query --search /usr/bin/nexusctl; }
for first in nexusctl nexus-collector; do
    for package in $first nexus-collector nexusctl; do
        inside sh -c "dpkg --install /tmp/${package}_*.deb" >/dev/null
        inside nexusctl version >/dev/null
    done
    [ "$(owner)" = "nexus-collector: /usr/bin/nexusctl" ] || fail "who owns nexusctl? $(owner)"
    inside dpkg --purge nexusctl >/dev/null
    inside nexusctl version >/dev/null
    [ $first = nexusctl ] || break
    # The other way round the command goes, and the way back is said.
    inside sh -c 'dpkg --install /tmp/nexusctl_*.deb && dpkg --purge nexus-collector' >"$work/log" 2>&1
    grep -q 'apt reinstall nexusctl' "$work/log" || fail "nothing says where nexusctl is"
    inside sh -c 'dpkg --install /tmp/nexusctl_*.deb' >/dev/null
    inside nexusctl version >/dev/null
    inside dpkg --purge nexusctl >/dev/null
done
there /etc/systemd/system/multi-user.target.wants/nexus-collector.service
[ "$(stat --format %U:%a "$root/var/lib/nexus/collector")" != root:700 ] || fail "the collector's folder is root's"
inside nexus-collector check-config
# Root's own words leave nothing behind that the service could not read.
inside nexus-collector init >/dev/null
inside nexus-collector login-code >/dev/null
[ -z "$(inside find /var/lib/nexus/collector ! -user nexus-collector)" ] || fail "root has files in the collector's folder"
inside dpkg --purge nexus-collector >/dev/null
if inside getent passwd nexus-collector; then fail "the user is left"; fi

rm -f "$root"/tmp/*.deb
mv "$root"/tmp/*.rpm "$work/"
diff "$work/before" <(everything) || fail "a purge left something behind"

step "rpm does the same"
everything >"$work/before"
for package in nexus-agent nexus-collector; do
    rpm --root "$root" --nodeps --nosignature --install "$(rpm_of $package)"
    there /etc/systemd/system/multi-user.target.wants/$package.service
    rpm --root "$root" --nodeps --nosignature --upgrade --replacepkgs "$(rpm_of $package)"
done
rpm --root "$root" --verify --nodeps nexus-agent nexus-collector
inside getent passwd nexus-collector >/dev/null || fail "no user"
rpm --root "$root" --nodeps --nosignature --install "$(rpm_of nexusctl)"
rpm --root "$root" --erase nexusctl
inside nexusctl version >/dev/null
rpm --root "$root" --nodeps --erase nexus-agent nexus-collector
gone /usr/bin/nexus-agent /usr/bin/nexusctl /etc/systemd/system/multi-user.target.wants/nexus-agent.service
there /var/lib/nexus/collector
# What is left is what the programs and their services made, rpm's own, and folders that distributions with rpm have.
left=$(comm -13 "$work/before" <(everything) | grep -vE \
    '^\./(var/lib/nexus|run/nexus|etc/systemd|root/\.rpmdb|usr/share/fish|usr/share/zsh/site-functions)(/|$)' || true)
[ -z "$left" ] || fail "left behind: $left"

step "a signed repository"
export GNUPGHOME=$work/gnupg
mkdir -m 0700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-generate-key 'Nexus packages <packages@nexus.example.org>' rsa3072 sign never
packaging/repo.sh packages@nexus.example.org "$root/srv/nexus"
gpg --batch --quiet --verify "$root/srv/nexus/rpm/repodata/repomd.xml.asc" "$root/srv/nexus/rpm/repodata/repomd.xml"
mkdir -p "$work/rpmdb"
rpmkeys --dbpath "$work/rpmdb" --import "$root/srv/nexus/nexus.asc"
rpmkeys --dbpath "$work/rpmdb" --checksig "$root"/srv/nexus/rpm/*.rpm
echo 'deb [signed-by=/srv/nexus/nexus.asc] file:/srv/nexus/apt stable main' >"$root/etc/apt/sources.list"
inside apt-get --quiet=2 update
inside apt-get --quiet=2 --yes install nexus-agent nexus-collector >/dev/null
inside nexus-agent version
# Whoever asks for the client beside a collector loses nothing.
inside apt-get --quiet=2 --yes install nexusctl >/dev/null
there /usr/bin/nexus-collector /usr/bin/nexusctl

step "cloud-init does what the example says"
inside apt-get --quiet=2 --yes purge nexus-agent nexus-collector nexusctl >/dev/null
echo "deb $mirror $VERSION_CODENAME main" >"$root/etc/apt/sources.list"
inside apt-get --quiet=2 update
inside apt-get --quiet=2 --yes --no-install-recommends install cloud-init gpg >"$work/log" 2>&1 || fail "cloud-init: $(tail "$work/log")"
# Only what the example needs: the rest would change this machine's name and network.
cat >"$root/etc/cloud/cloud.cfg" <<'END'
datasource_list: [ NoCloud ]
network: { config: disabled }
apt: { preserve_sources_list: true }
cloud_init_modules: [ write-files ]
cloud_config_modules: [ apt-configure ]
cloud_final_modules: [ package-update-upgrade-install ]
END
rm -f "$root"/etc/cloud/cloud.cfg.d/* "$root/etc/apt/sources.list"
seed=$root/var/lib/cloud/seed/nocloud
mkdir -p "$seed"
echo 'instance-id: first' >"$seed/meta-data"
sed "s/^/        /" "$root/srv/nexus/nexus.asc" >"$work/key"
sed "s|https://packages.example.org/apt|file:/srv/nexus/apt|; /BEGIN PGP/,/END PGP/{/END PGP/r $work/key
d}" packaging/examples/cloud-init.yaml >"$seed/user-data"
inside cloud-init schema --config-file /var/lib/cloud/seed/nocloud/user-data
for part in 'init --local' init 'modules --mode config' 'modules --mode final'; do
    # shellcheck disable=SC2086 # words
    inside cloud-init $part >"$work/log" 2>&1 || fail "cloud-init: $(tail "$work/log")"
done
[ "$(stat --format '%A %U' "$root/etc/nexus/enrol.token")" = "-rw------- root" ] || fail "who can read the token?"
inside nexus-agent version

step "an index that nobody signed is not believed"
echo 'deb [signed-by=/srv/nexus/nexus.asc] file:/srv/nexus/apt stable main' >"$root/etc/apt/sources.list"
rm -f "$root"/etc/apt/sources.list.d/*
sed -i 's/^Description: .*/&, really/' "$root"/srv/nexus/apt/dists/stable/main/binary-*/Packages
rm -f "$root"/srv/nexus/apt/dists/stable/main/binary-*/Packages.gz
rm -rf "$root"/var/lib/apt/lists/*
if inside apt-get --quiet=2 update 2>/dev/null && grep -q really <<<"$(inside apt-cache show nexusctl 2>/dev/null)"; then
    fail "apt believes an index that nobody signed"
fi
gpgconf --kill all

step "passed"
