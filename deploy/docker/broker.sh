#!/bin/bash
# fedless-broker DIR [REVOKED]: mosquitto with the files that `fedless broker config DIR` made. When the list of revoked
# certificates REVOKED changes, mosquitto gets it and reads it again. Ends with it, or at SIGTERM.
set -uo pipefail
directory=$1 revoked=${2:-}

mosquitto -c "$directory/mosquitto.conf" &
broker=$!
trap 'kill -TERM "$broker"' TERM INT
while kill -0 "$broker" 2>/dev/null; do
  if [ -n "$revoked" ] && [ -s "$revoked" ] && ! cmp -s "$revoked" "$directory/crl.pem"; then
    cp "$revoked" "$directory/.crl.new" && mv "$directory/.crl.new" "$directory/crl.pem"
    kill -HUP "$broker"
  fi
  sleep 2 &
  wait -n "$broker" "$!"
done
wait "$broker"
