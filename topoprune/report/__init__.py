"""Records to book: tables, figures, the tests of the claims."""
