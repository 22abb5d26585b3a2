# What the public image does with POSTGRES_USER, POSTGRES_DB and POSTGRES_PASSWORD_FILE at its first start.
set -eu
bin=$(dirname "$(ls /usr/lib/postgresql/*/bin/postgres)")
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    "$bin/initdb" --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --auth-local trust --auth-host scram-sha-256
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    "$bin/pg_ctl" --pgdata "$PGDATA" --wait --options "-c listen_addresses=''" start
    "$bin/createdb" --username "$POSTGRES_USER" "$POSTGRES_DB"
    "$bin/pg_ctl" --pgdata "$PGDATA" --wait stop
fi
exec "$bin/$1" -c listen_addresses='*'
