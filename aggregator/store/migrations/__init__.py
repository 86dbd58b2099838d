"""The database's schema over time: one revision per change, forward and back, on SQLite and PostgreSQL.

`versions/rNNNN_name.py` holds revision NNNN; CONTRIBUTING.md says how one is added. `store/migrate.py` runs them.
"""
