#!/usr/bin/env bash
# Docker, and NVIDIA's container toolkit that shows it the GPUs, on Debian or Ubuntu with NVIDIA's driver. Asks sudo for
# the password, adds NVIDIA's package source, restarts Docker. Ends by showing the GPUs from inside a container.
set -euo pipefail

source=https://nvidia.github.io/libnvidia-container
key=/usr/share/keyrings/nvidia-container-toolkit-keyring.gpg

sudo apt-get update
sudo apt-get install -y curl gnupg docker.io
curl -fsSL "$source/gpgkey" | sudo gpg --batch --yes --dearmor -o "$key"
echo "deb [signed-by=$key] $source/stable/deb/\$(ARCH) /" |
  sudo tee /etc/apt/sources.list.d/nvidia-container-toolkit.list
sudo apt-get update
sudo apt-get install -y nvidia-container-toolkit
sudo nvidia-ctk runtime configure --runtime=docker
sudo systemctl restart docker
sudo docker run --rm --gpus all ubuntu nvidia-smi
