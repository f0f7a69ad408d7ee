"""One script per published claim, each with the figures that tell whether it is kept; ``dynamos bench`` runs them.

A script is a module here with `NAME`, `CLAIM`, ``add_arguments(parser)`` and ``run(options) -> list[Report]``;
`command.SCRIPTS` lists them.
"""
