"""Configuration: `schema` says what can be set, `load` reads it from YAML and the command line."""
