"""The emoji set: some 3,300 drawings with their Unicode names, built from three Debian packages."""
