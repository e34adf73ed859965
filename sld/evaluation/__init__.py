"""The I2P test bed: prompt sets, classifiers, metrics, a resumable runner and a report."""
