#!/bin/bash
# Makes the secrets of compose.yaml, once: a password for the database, a key pair for the object store. The folder is
# closed to others; the files in it are readable, since each container reads its own as a user of its own.
set -euo pipefail
cd "$(dirname "$0")"
random() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }

mkdir -m 0700 secrets || { echo "secrets are here already" >&2; exit 1; }
cd secrets
access=$(random) secret=$(random)
cat > objects-identities.json <<END
{"identities": [{"name": "fedless", "credentials": [{"accessKey": "$access", "secretKey": "$secret"}],
 "actions": ["Admin", "Read", "Write", "List"]}]}
END
cat > objects-options.toml <<END
endpoint = "http://objects:8333"
region = "us-east-1"
access_key_id = "$access"
secret_access_key = "$secret"
virtual_hosted_style_request = false
END
random > database-password
chmod 0444 -- *
