from outputs import folder, two_sites  # noqa: F401 - fixtures
