"""The spool on disk: the connection, the tables, bodies with checksums, salvage, the lock, room for a full disk."""
