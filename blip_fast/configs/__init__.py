"""The published YAML files' values, one file per published name. Folders are to be replaced by one's own."""
