#!/usr/bin/env bash
# Install the browser that the tests of the report open it in, where there is none: Debian's chromium.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    echo "The tests of the report need a browser: install chromium (apt-get install chromium, as root)." >&2
    exit 1
fi
echo "install chromium, which the tests of the report need"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
