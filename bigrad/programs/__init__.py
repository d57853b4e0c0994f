"""Front ends: one file per modelling language, which never import each other."""
