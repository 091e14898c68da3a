#!/usr/bin/env bash
# Install what the long tests need and pip does not have, where it is not there: a browser, in which the report is
# opened, and a C++ compiler, which Inductor and the C++ of the docs are compiled with.
set -euo pipefail

missing=()
chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
[ -n "$chromium" ] || missing+=(chromium)
command -v g++ >/dev/null || missing+=(g++)
[ "${#missing[@]}" -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "The long tests need ${missing[*]}: apt-get install ${missing[*]}, as root." >&2
    exit 1
fi
echo "install ${missing[*]}, which the long tests need"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
