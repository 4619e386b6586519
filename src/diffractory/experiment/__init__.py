"""Images from the microscope: reading a series, a stand-in for one, and scores during a run."""
