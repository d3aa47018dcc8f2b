"""The tests: unit, contract, property, scenario, faults, sdk; ``support`` is the rig that they share."""
