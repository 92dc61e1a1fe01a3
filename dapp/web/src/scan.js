// Reads a QR code from a photograph, in the browser.
import jsQR from "jsqr";

for (const input of document.querySelectorAll("input[data-fills]")) {
  input.addEventListener("change", async () => {
    const field = document.getElementById(input.dataset.fills);
    const picture = await createImageBitmap(input.files[0]);
    const scale = Math.min(1, 1600 / Math.max(picture.width, picture.height));
    const canvas = new OffscreenCanvas(Math.round(picture.width * scale), Math.round(picture.height * scale));
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const found = jsQR(data, canvas.width, canvas.height);
    if (found) field.value = found.data;
    field.setCustomValidity(found ? "" : "No code was found in this picture; take it closer, and straight.");
    field.reportValidity();
  });
}
