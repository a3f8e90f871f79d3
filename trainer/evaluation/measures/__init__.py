"""What is measured: retrieval, intervals, the joint test, localization, robustness, caption quality."""
