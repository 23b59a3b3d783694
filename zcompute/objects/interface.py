"""How an interface and its methods are declared."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Method:
    """One method: what it is called, who may call it, what goes in and out.

    ``version`` is what a caller needs its peer to serve: the (major, minor) of the interface that brought the method.
    ``interface_version`` is what a server of it announces.
    """

    interface: str
    name: str
    request: type
    reply: type | None
    roles: frozenset[str]
    pool: str = "calls"
    version: tuple[int, int] = (1, 0)
    idempotent: bool = True
    interface_version: tuple[int, int] = (1, 0)


@dataclass(frozen=True)
class Interface:
    """A named set of methods with one version. ``methods`` fills as they are declared.

    ``carries``: payloads of events and reports, by name, that those who serve the interface understand.
    """

    name: str
    version: tuple[int, int] = (1, 0)
    carries: dict[str, type] = field(default_factory=dict, compare=False)
    methods: dict[str, Method] = field(default_factory=dict, compare=False)

    def method(
        self,
        name: str,
        request: type,
        reply: type | None,
        roles: frozenset[str],
        pool: str = "calls",
        *,
        since: int = 0,
        idempotent: bool = True,
    ) -> Method:
        """Declare a method; ``since`` is the minor version that brought it. ``reply`` None makes it a cast.

        Raises ValueError for a name that is taken or a minor that the interface has not reached.
        """
        if name in self.methods:
            raise ValueError(f"{self.name}.{name} is declared already: declare it once")
        if since > self.version[1]:
            raise ValueError(f"{self.name}.{name} is of minor {since}, {self.name} of {self.version}: raise the latter")
        version = (self.version[0], since)
        declared = Method(self.name, name, request, reply, roles, pool, version, idempotent, self.version)
        self.methods[name] = declared
        return declared
