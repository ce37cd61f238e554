"""One file per study: its config, its sweep, the table it prints, the figure it draws."""
