"""Asking a server which class a text belongs to: the text stays here, its rows go there, nothing is kept."""
