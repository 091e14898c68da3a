"""The flow: groups → prepare → calibrate → convert."""
