"""Four experts by `launch local`, one of them killed again and again: the others do not notice."""
