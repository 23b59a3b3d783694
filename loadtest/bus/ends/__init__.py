"""One module per contender, each with a server and a client process of its own.

A contender's module imports its library and the standard library only, so that it also runs in the peers' environment.
"""
