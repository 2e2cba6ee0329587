"""The tests; a package, since a dependency installs another one of this name."""
