"""The native driver: raw PyMySQL on MariaDB, one packet a batch."""
