import com.google.cloud.tools.jib.api.Containerizer;
import com.google.cloud.tools.jib.api.Jib;
import com.google.cloud.tools.jib.api.TarImage;
import com.google.cloud.tools.jib.api.buildplan.*;
import java.nio.file.*;
import java.time.Instant;

/** Writes an image of two layers with jib-core: TREE TREE FORMAT ARCHIVE CACHE. Jib knows files and directories, no links, and nine bits of a mode. */
class WriteJib {
  public static void main(String[] words) throws Exception {
    var image = Jib.fromScratch().setFormat(ImageFormat.valueOf(words[2])).setCreationTime(Instant.ofEpochSecond(1_600_000_000));
    image.addFileEntriesLayer(layer(Path.of(words[0]))).addFileEntriesLayer(layer(Path.of(words[1])));
    var archive = Containerizer.to(TarImage.at(Path.of(words[3])).named("localhost/jib:1"));
    image.containerize(archive.setBaseImageLayersCache(Path.of(words[4])).setApplicationLayersCache(Path.of(words[4])));
  }

  static FileEntriesLayer layer(Path root) throws Exception {
    var layer = FileEntriesLayer.builder();
    try (var paths = Files.walk(root)) {
      for (var path : (Iterable<Path>) paths.sorted()::iterator) {
        boolean isDirectory = Files.isDirectory(path, LinkOption.NOFOLLOW_LINKS);
        if (path.equals(root) || !(isDirectory || Files.isRegularFile(path, LinkOption.NOFOLLOW_LINKS))) {
          continue;
        }
        int mode = (Integer) Files.getAttribute(path, "unix:mode") & 0777;
        layer.addEntry(path, AbsoluteUnixPath.get("/" + root.relativize(path)), FilePermissions.fromOctalString(String.format("%03o", mode)),
            Files.getLastModifiedTime(path).toInstant(), isDirectory ? "" : "10:20");
      }
    }
    return layer.build();
  }
}
