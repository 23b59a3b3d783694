"""Long operations as journaled tasks of small idempotent steps, which any owner of the instance can carry on."""
