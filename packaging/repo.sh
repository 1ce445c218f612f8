#!/usr/bin/env bash
# Makes signed repositories of the packages in dist/: OUT/apt for apt and OUT/rpm for dnf, and OUT/nexus.asc, the public key
# that hosts are given. Needs apt-utils, createrepo-c, rpm and gpg.
#
#   packaging/repo.sh KEY OUT      KEY as gpg knows it in $GNUPGHOME; it is never copied
#
#   deb [signed-by=/etc/apt/keyrings/nexus.asc] https://HOST/apt stable main
#   [nexus] baseurl=https://HOST/rpm gpgcheck=1 repo_gpgcheck=1 gpgkey=https://HOST/nexus.asc
set -euo pipefail
export LC_ALL=C
if [ $# -ne 2 ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
dist=$(realpath "$(dirname "$0")/../dist")
key=$1
mkdir -p "$2"
out=$(realpath "$2")

sign() { gpg --batch --yes --local-user "$key" --digest-algo SHA512 "$@"; }

gpg --batch --armor --export "$key" >"$out/nexus.asc"
[ -s "$out/nexus.asc" ] || { echo "error: gpg has no key $key" >&2 && exit 1; }

# Old versions stay, so that going back is possible.
mkdir -p "$out/apt/pool/main"
cp "$dist"/*.deb "$out/apt/pool/main/"
cd "$out/apt"
# Made beside what is served, then put in its place whole.
rm -rf dists.new
mkdir -p dists.new/stable/main
architectures=$(for deb in pool/main/*.deb; do dpkg-deb --field "$deb" Architecture; done | sort -u | tr '\n' ' ')
for architecture in $architectures; do
    index=dists.new/stable/main/binary-$architecture
    mkdir -p "$index"
    apt-ftparchive --arch "$architecture" packages pool/main >"$index/Packages"
    gzip -9nkf "$index/Packages"
done
apt-ftparchive \
    -o APT::FTPArchive::Release::Origin=Nexus -o APT::FTPArchive::Release::Label=Nexus \
    -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \
    -o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures="${architectures% }" \
    release dists.new/stable >"$out/Release"
mv "$out/Release" dists.new/stable/Release
sign --clearsign --output dists.new/stable/InRelease dists.new/stable/Release
sign --armor --detach-sign --output dists.new/stable/Release.gpg dists.new/stable/Release
rm -rf dists.old
[ ! -e dists ] || mv dists dists.old
mv dists.new dists
rm -rf dists.old

# What was published is not signed anew: hosts and mirrors know its digest.
mkdir -p "$out/rpm"
new=()
for rpm in "$dist"/*.rpm; do
    if [ -e "$out/rpm/${rpm##*/}" ]; then
        echo "${rpm##*/} was published before, and stays" >&2
    else
        new+=("./${rpm##*/}")
    fi
done
cd "$out/rpm"
for rpm in "${new[@]}"; do
    cp "$dist/$rpm" "$rpm"
done
[ "${#new[@]}" = 0 ] || rpmsign --define "__gpg $(command -v gpg)" --define "_gpg_name $key" --define "_gpg_digest_algo sha512" --addsign "${new[@]}" >/dev/null
createrepo_c --quiet .
sign --armor --detach-sign --output repodata/repomd.xml.asc repodata/repomd.xml
