"""The REST API: Nova's v2.1 over the bus. Stateless, no database; as many processes as wanted."""
