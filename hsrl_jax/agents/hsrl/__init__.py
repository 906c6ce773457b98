"""HSRL: its settings, networks, way of acting and losses."""
