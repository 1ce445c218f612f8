#!/usr/bin/env bash
# Makes the packages, deb and rpm, in dist/. Needs cargo, a C compiler, dpkg-dev, binutils and git; what else of cargo it
# needs it installs.
#
#   packaging/build.sh                        builds the programs, then the packages
#   packaging/build.sh --no-build [DIR]       packages those in DIR (target/release), by `cargo auditable build --release`
#   packaging/build.sh … --check-reproducible does it again and compares byte by byte; programs, too, unless they are given:
#                                             from a clone in another folder, so everything must be committed
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

packages="nexus-agent nexus-collector nexusctl"
programs="" given=no check=no
while [ $# -gt 0 ]; do
    case $1 in
    --no-build)
        programs="${CARGO_TARGET_DIR:-target}/release"
        if [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; then
            programs=$2
            shift
        fi
        programs=$(realpath "$programs")
        given=yes
        ;;
    --check-reproducible) check=yes ;;
    *)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
        exit 2
        ;;
    esac
    shift
done

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
maintainer="Nexus maintainers <maintainers@nexus.example.org>"
# The one date of everything that carries one.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "error: $*" >&2
    exit 1
}

# One version of each, so that the same sources make the same packages.
tool() {
    ! grep -qx "$1 v$2:" <<<"$(cargo install --list)" || return 0
    # Used once or twice: what it takes to make them faster takes longer than they do.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --locked --quiet "$1@$2"
}

build_programs() {
    tool cargo-auditable 0.7.4
    local target=${CARGO_TARGET_DIR:-$PWD/target} home=${CARGO_HOME:-$HOME/.cargo} from flags="" maps=""
    # Where this machine has its folders must not show; of two that match, the later one counts.
    for from in "$PWD=/nexus" "$home=/cargo" "$target=/target"; do
        flags+=" --remap-path-prefix=$from"
        maps+=" -ffile-prefix-map=$from"
    done
    RUSTFLAGS=${flags# } CFLAGS=${maps# } CARGO_INCREMENTAL=0 \
        cargo auditable build --locked --profile dist -p nexus-agent -p nexus-collector -p nexusctl -p nexus-packaging
    programs=$(realpath "$target/dist")
}

# As they are shipped. Cargo leaves its symbols to a program whose package has settings of its own in the profile.
take_programs() {
    local program sections
    mkdir "$work/programs"
    for program in $packages; do
        strip --strip-all --remove-section=.comment -o "$work/programs/$program" "$programs/$program"
        check_hardening "$work/programs/$program"
        sections=$(readelf --sections "$work/programs/$program")
        grep -q '\.dep-v0' <<<"$sections" || fail "$program has no list of its libraries"
    done
}

# Loaded anywhere, nothing of its tables writable once it is linked, nothing on its stack executed.
check_hardening() {
    local said
    said=$(readelf --wide --file-header --program-headers --dynamic "$1")
    grep -q 'Type: *DYN' <<<"$said" && grep -q 'FLAGS_1.*PIE' <<<"$said" || fail "$1 is no PIE"
    grep -q 'GNU_RELRO' <<<"$said" && grep -q 'FLAGS_1.*NOW' <<<"$said" || fail "$1 has no full RELRO"
    grep -q 'GNU_STACK.* RW  *0' <<<"$said" || fail "$1 has an executable stack"
}

# Manual pages, completions, licences, bills of materials, changelogs, in $work/made.
make_the_rest() {
    local made=$work/made package doc
    "$programs/nexus-packaging" "$made"
    gzip -9n "$made"/man/*
    make_bills
    for package in $packages; do
        doc=$made/doc/$package
        cp "$made/licences/$package" "$doc/third-party"
        gzip -9nc CHANGELOG.md >"$doc/changelog.gz"
        gzip -9nc >"$doc/changelog.Debian.gz" <<END
$package ($version-1) stable; urgency=medium

  * Release $version; changelog.gz says what has changed.

 -- $maintainer  $(date --utc --rfc-email --date "@$SOURCE_DATE_EPOCH")
END
        cat >"$doc/copyright" <<END
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: nexus

Files: *
Copyright: 2026 the authors of Nexus
License: Apache-2.0
Comment: what the programs are linked from, and under which licences, stands in
 /usr/share/doc/$package/third-party.

License: Apache-2.0
 Licensed under the Apache License, Version 2.0. On Debian systems its text is in
 /usr/share/common-licenses/Apache-2.0, and everywhere at
 https://www.apache.org/licenses/LICENSE-2.0.
END
    done
}

# The tool writes beside every manifest of a workspace, so it is given a copy of them.
make_bills() {
    local package copy=$work/manifests
    tool cargo-cyclonedx 0.5.9
    mkdir "$copy"
    git ls-files -z '*Cargo.toml' Cargo.lock '*.rs' | xargs -0 cp --parents --target-directory "$copy"
    (cd "$copy" && cargo cyclonedx --quiet --format json --spec-version 1.5 --override-filename bill)
    for package in $packages; do
        mkdir -p "$work/made/doc/$package"
        # Which folder it was made in does not matter to anybody.
        sed "s|$copy|/nexus|g" "$(dirname "$(grep -lx "name = \"$package\"" "$copy"/*/Cargo.toml "$copy"/*/*/Cargo.toml)")/bill.json" \
            >"$work/made/doc/$package/$package.cdx.json"
    done
}

# A folder with all files of a package under root/, and the one manifest that both formats are made from.
stage() {
    local package=$1 of mode destination source file
    local stage=$work/$package
    mkdir -p "$stage/deb" "$stage/rpm"
    sed "s/@VERSION@/$version/g; s/@MAINTAINER@/$maintainer/g" "packaging/control/$package.toml" >"$stage/Cargo.toml"
    # Cargo itself is only asked where the manifest is.
    printf '\n[lib]\npath = "lib.rs"\n\n[workspace]\n' >>"$stage/Cargo.toml"
    : >"$stage/lib.rs"
    while read -r of mode destination source; do
        [ "$of" = "$package" ] || continue
        source=${source/#@programs/$work/programs}
        # shellcheck disable=SC2086 # a pattern
        for file in ${source/#@made/$work/made}; do
            case $destination in
            */) add_file "$stage" "$mode" "$destination${file##*/}" "$file" ;;
            *) add_file "$stage" "$mode" "$destination" "$file" ;;
            esac
        done
    done < <(sed 's/#.*//' packaging/files)
    own_folders "$stage"
    sed -i "s/@LIBRARIES@/$(libraries_of "$stage")/" "$stage/Cargo.toml"
    [ -e "packaging/scripts/$package" ] || return 0
    for file in deb/postinst deb/prerm deb/postrm rpm/post rpm/preun rpm/postun; do
        {
            if [ "${file%/*}" = deb ]; then printf '#!/bin/sh\nset -e\n'; fi
            cat "packaging/scripts/$package" "packaging/scripts/${file/\//-}"
        } >"$stage/$file"
    done
}

# Dpkg removes what is empty by then; rpm, only folders of which it was told. Those that no distribution has are ours, in each
# package that has files in them. The tool knows no folders, but the mode of one.
own_folders() {
    local folder
    : >"$1/folder"
    find "$1/root" -type d -printf '%P\n' | grep -E '^(etc/.|usr/share/doc/.|usr/share/lintian)' | sort | while read -r folder; do
        cat >>"$1/Cargo.toml" <<END

[[package.metadata.generate-rpm.assets]]
source = "folder"
dest = "/$folder"
mode = "40755"
user = "root"
group = "root"
END
    done
}

# The packages that have what a package's programs load.
libraries_of() {
    local said version needed
    mkdir "$1/debian"
    printf 'Source: nexus\n\nPackage: nexus\nArchitecture: any\n' >"$1/debian/control"
    said=$(cd "$1" && dpkg-shlibdeps -O root/usr/bin/*)
    said=${said#shlibs:Depends=}
    # It goes by symbols, and packed relocations are none.
    version=$(sed -n 's/.*libc6 (>= \([0-9.]*\)).*/\1/p' <<<"$said")
    needed=$(readelf --version-info "$1"/root/usr/bin/*)
    if grep -q GLIBC_ABI_DT_RELR <<<"$needed" && dpkg --compare-versions "$version" lt 2.36; then
        said=${said/"libc6 (>= $version)"/"libc6 (>= 2.36)"}
    fi
    echo "$said"
}

main() {
    local package dist=$PWD/dist
    tool cargo-deb 3.7.0
    tool cargo-generate-rpm 0.19.0
    [ -n "$programs" ] || build_programs
    take_programs
    make_the_rest
    rm -rf "$dist"
    mkdir "$dist"
    for package in $packages; do
        stage "$package"
        cd "$work/$package"
        CARGO_TARGET_DIR=$work/target cargo deb --quiet --no-build --no-strip --output "$dist/"
        cargo generate-rpm --auto-req builtin --output "$dist/"
        cd - >/dev/null
    done
    # What made them, for whoever would make them again.
    { rustc --version --verbose && "${CC:-cc}" --version | sed -n 1p; } >"$dist/BUILT-WITH"
    (cd "$dist" && sha256sum -- *.deb *.rpm >SHA256SUMS)
}

add_file() {
    local stage=$1 mode=$2 destination=$3 file=$4 doc=false config=""
    [ -f "$file" ] || fail "packaging/files: there is no $file for $destination"
    install -D --mode "$mode" "$file" "$stage/root$destination"
    case $destination in
    /etc/*) config='config = "noreplace"' ;;
    /usr/share/doc/* | /usr/share/man/*) doc=true ;;
    esac
    cat >>"$stage/Cargo.toml" <<END

[[package.metadata.deb.assets]]
source = "root$destination"
dest = "$(d=${destination#/} && echo "${d/@zsh/vendor-completions}")"
mode = "$mode"

[[package.metadata.generate-rpm.assets]]
source = "root$destination"
dest = "${destination/@zsh/site-functions}"
mode = "$mode"
user = "root"
group = "root"
doc = $doc
$config
END
}

main
if [ "$check" = yes ]; then
    cp dist/SHA256SUMS "$work/first"
    if [ "$given" = yes ]; then
        packaging/build.sh --no-build "$programs" >/dev/null
        again=dist
    else
        git clone --quiet . "$work/again"
        CARGO_TARGET_DIR=$work/again.target "$work/again/packaging/build.sh" >/dev/null
        again=$work/again/dist
    fi
    diff "$work/first" "$again/SHA256SUMS" >&2 || fail "the second build differs"
    echo "both builds are equal" >&2
fi
cat dist/SHA256SUMS
