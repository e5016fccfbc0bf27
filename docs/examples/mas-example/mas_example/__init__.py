"""An example of what a package can add to mas-edge; docs/extending.md walks through it."""
