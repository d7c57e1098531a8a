"""The steps that lockgate brings; others come by entry point (`lockgate.steps`)."""
