"""The commands `optmigd` and `optmigctl`."""
