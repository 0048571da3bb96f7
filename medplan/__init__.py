"""medplan: self-configuring medical image segmentation when labels are scarce.

Importing this package imports neither torch nor SimpleITK; the modules that need them do so themselves.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
