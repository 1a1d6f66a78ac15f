"""Training on images: `fastnest train --data cifar10`, in one process or several."""
