"""Variables of the environment by which the server's parts find each other; imports nothing."""

#: The folder that holds ``server.toml``: for the server's app.
SERVER_VARIABLE = "FEDTAIL_SERVER"
#: The operator's folder: in all that ``up`` starts.
UP_VARIABLE = "FEDTAIL_UP"
#: SuperLink's ``host:port`` where it runs in a container, which needs no ``up``.
SUPERLINK_VARIABLE = "FEDTAIL_SUPERLINK"
#: Beside ``server.toml``, where that names no other: who may take part in secure sums.
ROSTER_FILE = "roster"
