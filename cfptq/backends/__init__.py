"""Hand-overs of a plan, one file a toolchain. Each imports its toolchain itself, so that none is needed by the others."""
