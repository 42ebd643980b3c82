"""The spool on disk: the connection, the tables, their salvage, the clock of ages, the lock, room for a full disk."""
