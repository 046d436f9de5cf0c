"""`sf-edge doctor`: would `sf-edge run` with these settings work here, and if not, why not?"""
