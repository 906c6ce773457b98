"""Small pure maths of one state or one step."""
