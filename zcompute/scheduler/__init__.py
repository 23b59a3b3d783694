"""The scheduler: a resource that is queried. Host states in memory, ``select_destinations`` in, hosts out.

It never writes, commands or proxies: what it chose holds only once the host's owner has granted a claim.
"""
