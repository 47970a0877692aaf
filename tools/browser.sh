#!/bin/sh
# Make sure there is a Chromium for the tests that read the built book. Debian's package is taken
# where this runs as root with apt-get; elsewhere a message says what to install.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then
        exit 0
    fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Chromium, which the tests of the built book use."
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        chromium fonts-liberation fonts-noto-cjk >/dev/null
    exit 0
fi
echo "The tests of the built book need Chromium: sudo apt-get install chromium" >&2
exit 2
