"""A package, so that a fixture can live exactly as long as the tests of this folder."""
