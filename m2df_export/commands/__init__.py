"""`m2df-export` and its subcommands."""
