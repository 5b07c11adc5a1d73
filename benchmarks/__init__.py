"""What is measured of Tandem beside single functions: claims of the field, comparisons, results."""
