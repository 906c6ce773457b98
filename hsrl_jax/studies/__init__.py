"""Studies that show one thing once, and the method as published.

Nothing else imports it. `python -m hsrl_jax.studies` is the command
`hsrl_jax.launch` with these studies and that agent.
"""
