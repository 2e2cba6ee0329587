"""The command-line interface: one module for each command, with little code above the library."""
