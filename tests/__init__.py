"""The tests: a package, because one of the packages that PortBench installs brings another of this name."""
