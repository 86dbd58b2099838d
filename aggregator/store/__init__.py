"""The aggregator's durable state: one SQLite or PostgreSQL database behind named transactions.

`engine` opens it (by `sqlite` or `postgresql`), brings it to this program's schema (`migrate`) and runs transactions
in one worker thread; `schema` holds the tables of runs and rounds, `fleet` those of clients and certificates; the
other modules are functions on a connection, to be combined into one transaction per step of the protocol.
"""
