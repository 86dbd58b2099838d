"""The aggregator's durable state: one SQLite (later PostgreSQL) database behind named transactions.

`engine` opens it and runs transactions in one worker thread, `schema` holds the tables of runs and rounds,
`fleet` those of clients and certificates; the other modules are functions on a connection, to be combined
into one transaction per step of the protocol.
"""
